"""Where models compute tasks: recognising sites, putting candidates there, taking them out again."""
