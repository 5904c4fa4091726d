"""Make the model call a function; only the arguments are its choice."""

import base64
import os
from pathlib import Path
from typing import Literal

import openai
from pydantic import BaseModel


class ReportShape(BaseModel):
    """Report a shape that the picture shows."""

    color: Literal["red", "green", "blue", "yellow", "orange", "purple", "black", "white"]
    shape: Literal["circle", "square", "triangle", "star", "cross"]


endpoint = os.environ.get("PHI3V_ENDPOINT", "http://127.0.0.1:8000")
client = openai.OpenAI(base_url=f"{endpoint}/v1", api_key=os.environ.get("PHI3V_API_KEY", "any"))
picture = base64.b64encode(Path("shapes.png").read_bytes()).decode()
answer = client.chat.completions.parse(
    model="phi3v",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Describe the picture."},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            ],
        }
    ],
    temperature=0,
    max_tokens=200,
    tools=[openai.pydantic_function_tool(ReportShape)],
    tool_choice={"type": "function", "function": {"name": "ReportShape"}},
)
call = answer.choices[0].message.tool_calls[0]
shape = call.function.parsed_arguments
print(shape.color, shape.shape)
