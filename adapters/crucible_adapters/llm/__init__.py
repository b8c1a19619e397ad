"""Language models of providers. Nothing here loads a provider's library before it is used."""
