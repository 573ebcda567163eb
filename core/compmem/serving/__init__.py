"""An index for other programs: over HTTP (`compmem serve`) and over the Model Context Protocol (`compmem mcp`)."""
