"""VBench: its prompts and file names, the real benchmark in an interpreter of its own, and its total score."""
