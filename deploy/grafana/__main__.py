"""`python -m deploy.grafana` writes dashboards/*.json and the reading guide anew."""

from pathlib import Path

from deploy.grafana.build import rendered

FOLDER = Path(__file__).parent

if __name__ == "__main__":
    for path, text in rendered().items():
        (FOLDER / path).write_text(text, encoding="utf-8")
        print(f"wrote {FOLDER / path}")
