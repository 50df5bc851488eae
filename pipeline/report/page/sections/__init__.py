"""The sections of the page, in order: each module makes one or two of them, or None where there is nothing to show."""
