# shellcheck shell=bash
# The attempts of a training job, so that one that gets nowhere ends and says why. An attempt is one
# start of all tasks, be it the first, one in the same allocation, or one after a requeue.
#
# In:  job_folder, of start_job. The file in it outlives requeues; a line for each thing that happened:
#      STEP WHAT DETAILS, where STEP is that of the newest whole checkpoint when the attempt began and
#      WHAT is started, ended, or moved (queued again from outside while all its nodes were well).

# Attempts in a row that began at one step and came to an end, and that began there at all: a job that
# an administrator moves to other nodes is not to blame, but does not do so for ever.
MOST_ENDED=3
MOST_STARTED=10

# shellcheck disable=SC2154
attempts_file=$job_folder/attempts
export ROSEATE_PROGRESS_FILE=$job_folder/progress
touch "$attempts_file"
attempt_step=0 attempt_number=0

# Step of the newest whole checkpoint, as the main rank tells it; 0 before the first.
newest_step() {
  local step=''
  read -r step 2>/dev/null <"$ROSEATE_PROGRESS_FILE" || true
  # A rank killed while it wrote leaves an empty file: then what was last known.
  [[ $step =~ ^[0-9]+$ ]] || step=$(tail -n 1 "$attempts_file" | cut -d ' ' -f 1)
  printf '%s\n' "${step:-0}"
}

note() { printf '%s %s %s\n' "$attempt_step" "$1" "$(date +%T) ${*:2}" >>"$attempts_file"; }

# Start to count an attempt. Sets attempt_step and attempt_number, from 0 on over the whole job.
# Ends the job with exit code 4 where the attempts before it have made no progress.
begin_attempt() {
  local started ended
  attempt_step=$(newest_step)
  if [[ $(tail -n 1 "$attempts_file") == *' started '* ]]; then
    sed -n '$ s/started.*/lost without a word of its end: a node failed, or the job was killed/p' \
      "$attempts_file" >>"$attempts_file"
  fi
  read -r started ended < <(awk -v step="$attempt_step" '
    $1 != last { delete count }
    { last = $1; count[$2]++ }
    END { if (last != step) delete count; print count["started"] + 0, count["started"] - count["moved"] }
  ' "$attempts_file")
  if ((ended >= MOST_ENDED || started >= MOST_STARTED)); then
    say "no progress: $started attempts in a row began at step $attempt_step, and none wrote a newer" \
      "whole checkpoint:"
    sed -n "/^$attempt_step started/,\$ s/^$attempt_step /    /p" "$attempts_file" |
      tail -n $((2 * MOST_STARTED))
    say "not started again. Why they ended stands above, in this log; mend that, or lower" \
      "checkpoint.every_steps where an attempt is too short to reach a checkpoint. The same sbatch goes" \
      "on at step $attempt_step; the state of this job is in $job_folder"
    exit 4
  fi
  # shellcheck disable=SC2034
  attempt_number=$(grep -c ' started ' "$attempts_file" || true)
  note started "restart ${SLURM_RESTART_COUNT:-0}, nodes $SLURM_JOB_NODELIST"
}

end_attempt() { # end_attempt EXIT_CODE
  local how="exit code $1"
  (($1 <= 128)) || how+=", killed by signal $(($1 - 128))"
  note ended "$how, newest checkpoint at step $(newest_step)"
}
