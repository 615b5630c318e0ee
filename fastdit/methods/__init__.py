"""Acceleration methods, one folder each: config.py is the method as data, method.py carries it out."""
