"""Nothing here is a test: stand-ins and set-up for the engines' environments, which no other process may import."""

collect_ignore_glob = ["alias_vllm.py", "stubs/*"]
