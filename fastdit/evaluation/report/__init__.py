"""Reports of runs: one table (Markdown, JSON, a self-contained HTML page) of speed and quality, with intervals."""
