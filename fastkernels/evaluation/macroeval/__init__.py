"""MacroEval: one score for a candidate set over many models, from the results of many machines."""
