"""A model for lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval): its tasks, answered from pruned prefixes."""
