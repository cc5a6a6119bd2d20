"""The page of all results: runs, claims of the paper with verdicts, Markdown and HTML."""
