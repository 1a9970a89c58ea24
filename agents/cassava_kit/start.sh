#!/bin/bash
# Train within the time limit and leave ${SUBMISSION_DIR}/submission.csv. MLE-bench mounts public/ at /home/data.
set -euo pipefail

DATA=${DATA_DIR:-/home/data}
WORK=${AGENT_DIR}/work
# What is kept back for starting, copying and checking, in seconds.
RESERVE=${RESERVE_SECS:-600}
mkdir -p "${WORK}" "${SUBMISSION_DIR}" "${LOGS_DIR}"
cd "${AGENT_DIR}"

if command -v conda >/dev/null; then
  eval "$(conda shell.bash hook)"
  conda activate cassava-kit
fi

weights=()
for file in weights/*.safetensors; do
  [ -e "${file}" ] && weights+=(--weights "$(basename "${file}" .safetensors)=${file}")
done

# The kit writes a valid file early and a better one at the end; what is there is copied every minute.
copy_submission() {
  if [ -s "${WORK}/submission.csv" ]; then
    cp "${WORK}/submission.csv" "${SUBMISSION_DIR}/submission.csv.new"
    mv "${SUBMISSION_DIR}/submission.csv.new" "${SUBMISSION_DIR}/submission.csv"
  fi
}
set -m  # a process group of its own: its sleep ends with it, and nobody waits for the output that it holds open
while sleep "${COPY_SECS:-60}"; do copy_submission; done &
copier=$!
set +m
trap 'kill -- -${copier}; copy_submission' EXIT

status=0
timeout --signal=TERM $((TIME_LIMIT_SECS - RESERVE / 2)) \
  cassava-kit submit ensemble --data "${DATA}" --out "${WORK}" --time-limit $((TIME_LIMIT_SECS - RESERVE)) \
  ${weights[@]+"${weights[@]}"} "$@" > "${LOGS_DIR}/cassava-kit.log" 2>&1 || status=$?
copy_submission
if [ -x /home/validate_submission.sh ]; then
  /home/validate_submission.sh "${SUBMISSION_DIR}/submission.csv"
fi
exit "${status}"
