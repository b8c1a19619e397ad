"""Adapters of the ports training and sampling around a bigram model, written from the contract alone: a second opinion
beside the torch engine, small enough to be broken on purpose.
"""
