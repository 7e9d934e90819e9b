"""The candidates are data: some crash, some do not import. Only the bench runs them, in processes of its own."""

collect_ignore_glob = ["cheats/*", "honest/*"]
