"""Stream an answer about a picture with the Azure SDK."""

import os

from azure.ai.inference import ChatCompletionsClient
from azure.ai.inference.models import ImageContentItem, ImageUrl, TextContentItem, UserMessage
from azure.core.credentials import AzureKeyCredential

endpoint = os.environ.get("PHI3V_ENDPOINT", "http://127.0.0.1:8000")
client = ChatCompletionsClient(endpoint, AzureKeyCredential(os.environ.get("PHI3V_API_KEY", "any")))
print("model:", client.get_model_info().model_name)

question = [
    TextContentItem(text="Describe the picture."),
    ImageContentItem(image_url=ImageUrl.load(image_file="shapes.png", image_format="png")),
]
stream = client.complete(
    messages=[UserMessage(question)], temperature=0, max_tokens=64, stream=True
)
for update in stream:
    if update.choices:
        print(update.choices[0].delta.content, end="", flush=True)
print()
