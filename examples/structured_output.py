"""Get an answer that fits a schema, whatever the model would like to say."""

import base64
import os
from pathlib import Path
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel, TypeAdapter


class Shape(BaseModel):
    """A shape in the picture."""

    shape: Literal["circle", "square", "triangle", "star", "cross"]
    color: Literal["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]


shapes = TypeAdapter(list[Shape])
endpoint = os.environ.get("PHI3V_ENDPOINT", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{endpoint}/v1", api_key=os.environ.get("PHI3V_API_KEY", "any"))
picture = base64.b64encode(Path("shapes.png").read_bytes()).decode()
answer = client.chat.completions.create(
    model="phi3v",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Describe the picture. Answer as JSON."},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            ],
        }
    ],
    temperature=0,
    max_tokens=200,
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "shapes", "schema": shapes.json_schema()},
    },
)
for shape in shapes.validate_json(answer.choices[0].message.content):
    print(shape.color, shape.shape)
