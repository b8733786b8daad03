"""The charts of report.html, a module each: numbers in, a `Figure` of inline SVG out."""
