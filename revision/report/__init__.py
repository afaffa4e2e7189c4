"""From result rows, gap reports and training curves to tables, figures and a one-page report."""
