"""Pages as a person sees them: a browser, and what serves the pages."""
