"""Ask about a picture of yours: describe_picture.py FILE [QUESTION]"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI

path = Path(sys.argv[1] if len(sys.argv) > 1 else "shapes.png")
question = sys.argv[2] if len(sys.argv) > 2 else "Describe the picture."
endpoint = os.environ.get("PHI3V_ENDPOINT", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{endpoint}/v1", api_key=os.environ.get("PHI3V_API_KEY", "any"))

kind = mimetypes.guess_type(path)[0] or "image/png"
data = base64.b64encode(path.read_bytes()).decode()
answer = client.chat.completions.create(
    model="phi3v",
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": question},
                {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
            ],
        }
    ],
    temperature=0,
    max_tokens=256,
)
print(answer.choices[0].message.content)
