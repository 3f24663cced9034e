"""Tools of proof: real servers, a proxy that breaks things on purpose, waiting for conditions."""
