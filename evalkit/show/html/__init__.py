"""report.html: one self-contained page of a run or a comparison, its charts and its episodes."""
