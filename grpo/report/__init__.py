"""The report of a run: one HTML page that needs nothing beside itself. What a run wrote down is read, and never changed.

recorded_run.py reads a run's folder, estimates.py has the statistics, rollout_selection.py chooses the rollouts that go into the
page, chart_specs.py and charts.py say what is drawn, summary.py the facts around it, page.py writes it all down. The page itself
is page.html, with its style and scripts beside it. No import here loads torch.
"""
