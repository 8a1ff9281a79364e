#!/usr/bin/env bash
# Use the REST API with curl: examples/curl.sh VIDEO AUDIO OUT [option=value ...]
# LATENTSYNC_URL: the server (default http://127.0.0.1:8000). LATENTSYNC_API_KEY: the key, if it requires one.
set -euo pipefail

VIDEO=$1 AUDIO=$2 OUT=$3
shift 3
URL=${LATENTSYNC_URL:-http://127.0.0.1:8000}
CURL=(curl --silent --show-error)
if [[ -n ${LATENTSYNC_API_KEY:-} ]]; then
    CURL+=(--header "Authorization: Bearer $LATENTSYNC_API_KEY")
fi

OPTIONS=()
for option in "$@"; do
    OPTIONS+=(--form-string "$option")
done

# Submit: two files, and options as further fields. The response is the job; links.self is its path.
if ! ANSWER=$("${CURL[@]}" --fail-with-body ${OPTIONS[@]+"${OPTIONS[@]}"} \
    --form "video=@\"$VIDEO\"" --form "audio=@\"$AUDIO\"" "$URL/v1/jobs"); then
    echo "$ANSWER" >&2
    exit 1
fi
JOB=$(sed -n 's/.*"self": *"\([^"]*\)".*/\1/p' <<<"$ANSWER")
echo "queued as ${JOB##*/}"

# Follow the job to its end: events named progress, then one named final.
"${CURL[@]}" --fail --no-buffer "$URL$JOB/events" | sed -n 's/^event: //p'

# Download the result. Add --continue-at - to resume an interrupted download.
"${CURL[@]}" --fail --output "$OUT" "$URL$JOB/result"
echo "saved $OUT"
