"""Exports: adapter, merged model, model card, each verified in a fresh process."""
