"""The candidates are data, and some crash or hang. Only evaluations run them, in processes of their own."""

collect_ignore_glob = ["*/L?/*"]
