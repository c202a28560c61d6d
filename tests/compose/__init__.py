"""The check of docker-compose.yml: built, started, scaled, broken, stopped and started again."""
