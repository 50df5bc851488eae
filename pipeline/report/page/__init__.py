"""report.html: everything that was built and measured, on one page that needs nothing but itself."""
