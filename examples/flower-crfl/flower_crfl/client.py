"""The ClientApp."""

from flower_crfl import task
from rsfl.fed import flower

app = flower.client_app(
    lambda context: (task.model(context.run_config["seed"]), task.client(context))
)
