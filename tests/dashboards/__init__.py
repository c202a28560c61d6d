"""`make dashboards-check`: rules and dashboards against a real Prometheus that scrapes a real worker under load."""
