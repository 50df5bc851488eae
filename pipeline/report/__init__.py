"""What people look at: report.md, and what `bench`, `race` and `reference` print of their figures."""
