"""Measurements of the modality gap: plain functions of rows and moments, with no trained part."""
