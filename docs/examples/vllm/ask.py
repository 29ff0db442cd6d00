"""Send the exported bodies to a server that may still be starting: `python ask.py requests.jsonl http://host:port`."""

import json
import sys
import time
import urllib.request
from pathlib import Path

WAIT_S = 600

if __name__ == "__main__":
    requests, server = Path(sys.argv[1]), sys.argv[2]
    end = time.monotonic() + WAIT_S
    while True:
        try:
            urllib.request.urlopen(f"{server}/health", timeout=5).close()
            break
        except OSError:
            if time.monotonic() > end:
                sys.exit(f"no server answers at {server}; see its log")
            time.sleep(1)
    for line in requests.open(encoding="utf-8"):
        asked = json.loads(line)
        body = json.dumps(asked["body"]).encode()
        post = urllib.request.Request(server + asked["url"], body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(post, timeout=300) as response:
            choice = json.load(response)["choices"][0]
        answer = choice["text"] if "text" in choice else choice["message"]["content"]
        print(asked["custom_id"], "->", answer.strip())
