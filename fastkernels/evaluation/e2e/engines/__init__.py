"""Arms that are serving engines: how each is started, asked, proven and judged."""
