"""Models that ship with the package: the tiny trained ones, the ones with a known truth, LLaVA-Mini."""
