"""Asks the skill set `skills` one question and prints which modules answered.

Run it:

    cargo xtask demo                     # in one terminal; leave it running
    pip install openai
    python examples/chat.py              # in another one
    python examples/chat.py "Give the past tense of the verb slug."

POLYSKILL_URL and POLYSKILL_API_KEY point it at another server.
"""

import os
import sys

from openai import OpenAI

question = " ".join(sys.argv[1:]) or "Please format 20th June 2006 as an ISO date."
client = OpenAI(
    base_url=os.environ.get("POLYSKILL_URL", "http://127.0.0.1:8080/v1"),
    api_key=os.environ.get("POLYSKILL_API_KEY", "none"),  # the client wants one, the server only if configured
)
response = client.chat.completions.create(
    model="skills",
    messages=[{"role": "user", "content": question}],
    temperature=0,
    max_tokens=64,
    extra_body={"trace": "summary"},
)
print(response.choices[0].message.content)

# Fields that OpenAI's API does not have are in `model_extra`.
report = response.model_extra["polyskill"]
if report["served"] == "fallback":
    print(f"the base answered alone: {report['fallback_reason']}")
for module, share in sorted(report["routing"]["share"].items(), key=lambda item: -item[1]):
    print(f"{share:6.1%}  {module}")
