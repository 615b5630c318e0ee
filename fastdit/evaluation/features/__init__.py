"""Feature extractors: networks that turn a picture into numbers whose distances mean something; one file each.

To add one: a class derived from `base.Extractor` in a file of its own, registered at its end. Nothing else.
"""
