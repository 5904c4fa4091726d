"""Hold a conversation about a picture with the OpenAI SDK."""

import base64
import os
from pathlib import Path

from openai import OpenAI

endpoint = os.environ.get("PHI3V_ENDPOINT", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{endpoint}/v1", api_key=os.environ.get("PHI3V_API_KEY", "any"))

picture = base64.b64encode(Path("shapes.png").read_bytes()).decode()
messages = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "How many shapes are there?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        ],
    }
]
for follow_up in ("What colour is the circle?", "Is the circle left of the square?", None):
    answer = client.chat.completions.create(model="phi3v", messages=messages, temperature=0)
    text = answer.choices[0].message.content
    print(f"{answer.usage.prompt_tokens} tokens in:", text)
    messages.append({"role": "assistant", "content": text})
    if follow_up is not None:
        print(">", follow_up)
        messages.append({"role": "user", "content": follow_up})
