#!/usr/bin/env bash
# From URL tables to figures: submits the jobs of a run, each to start when the one before is done.
set -euo pipefail

usage() {
  cat <<'HELP'
slurm/submit_all.sh [OPTION ...] CONFIG [section.key=value ...]

Submits ingest -> curate -> features -> pretrain -> evaluate and prints the job ids. A job starts when
the one before has ended well (afterok); when that fails, those behind it are cancelled.

  --from STAGE, --until STAGE   only these stages and those between
  --curate                      the rules of the section curate, by slurm/curate.sh; what follows trains on
                                what they keep when data.sources.NAME.bitmaps=[curated] says so
  --curate=SCRIPT               your own batch script in its place; it gets CONFIG and the overrides
  --features                    features of the frozen image tower before pretrain
  --array                       a job for each source of ingest.sources, side by side
  --array=0-9%3                 so many, at most 3 at a time; nothing has to be read here to count them
  --sbatch STAGE=OPTIONS        options of sbatch for one stage; may be given again. For all stages
                                export SBATCH_PARTITION, SBATCH_ACCOUNT and the like
  --dry-run                     print the commands, submit nothing
  --help

Examples:
  slurm/submit_all.sh --curate openclipart optim.lr=1e-4
  slurm/submit_all.sh --array --sbatch pretrain="--nodes=4 --gpus-per-node=8 --ntasks-per-node=8" my.yaml
  slurm/submit_all.sh --from pretrain --dry-run my.yaml name=second
HELP
}

stages=(ingest curate features pretrain evaluate)
declare -A options=()
from='' until='' curate='' features='' array='' dry_run=''

refuse() {
  printf 'submit_all: %s\n' "$*" >&2
  exit 2
}

known_stage() { # known_stage OPTION NAME
  [[ " ${stages[*]} " == *" $2 "* ]] ||
    refuse "$1: there is no stage '$2'; name one of: ${stages[*]}"
}

while (($# > 0)); do
  case $1 in
    --from | --until | --sbatch) (($# > 1)) || refuse "$1 wants a value, see --help" ;;&
    --from) known_stage "$1" "$2"; from=$2; shift ;;
    --until) known_stage "$1" "$2"; until=$2; shift ;;
    --curate) curate=own ;;
    --curate=*) curate=${1#*=} ;;
    --sbatch)
      [[ $2 == *=* ]] || refuse "--sbatch: '$2' is not STAGE=OPTIONS, as in pretrain=\"--nodes=4\""
      known_stage "$1" "${2%%=*}"
      options[${2%%=*}]+=" ${2#*=}"
      shift
      ;;
    --features) features=1 ;;
    --array) array=count ;;
    --array=*) array=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage; exit ;;
    -*) refuse "$1 is no option of this script, see --help" ;;
    *) break ;;
  esac
  shift
done
(($# > 0)) || refuse "which run? slurm/submit_all.sh [OPTION ...] CONFIG [section.key=value ...], see --help"
[[ -z $curate || $curate == own || -f $curate ]] || refuse "--curate: there is no file $curate; name a batch script"

# The stages that are asked for, in order.
chosen=() within=$([[ -n $from ]] || echo 1)
for stage in "${stages[@]}"; do
  [[ $stage != "$from" ]] || within=1
  [[ -z $within || ($stage == curate && -z $curate) || ($stage == features && -z $features) ]] ||
    chosen+=("$stage")
  [[ $stage != "$until" ]] || break
done
((${#chosen[@]} > 0)) ||
  refuse "no stage is left from '${from:-ingest}' until '${until:-evaluate}':" \
    "curate wants --curate, features wants --features"

ROSEATE_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROSEATE_HOME
# shellcheck source=slurm/job.sh
source "$ROSEATE_HOME/slurm/job.sh"
if [[ $array == count && ${chosen[0]} == ingest ]]; then
  mapfile -t sources < <(
    SLURM_SUBMIT_DIR=$PWD
    prepare_shell
    take_config "$@"
    list_sources "${command_container[@]}" \
      "$ROSEATE_PYTHON" -m pipeline config show "${config_arguments[@]}"
  )
  ((${#sources[@]} > 0)) ||
    refuse "--array: no sources in ingest.sources of $1; see above, or say how many: --array=0-9"
  array=0-$((${#sources[@]} - 1))
fi

ids=()
take_back() {
  ((${#ids[@]} == 0)) || scancel "${ids[@]}"
  refuse "sbatch refused $1; taken back: ${ids[*]:-nothing was submitted}"
}

rows=(stage job after)
previous=''
for stage in "${chosen[@]}"; do
  read -r -a command <<<"sbatch --parsable ${options[$stage]:-}"
  [[ -z $previous ]] || command+=("--dependency=afterok:$previous" --kill-on-invalid-dep=yes)
  [[ $stage != ingest || -z $array ]] || command+=("--array=$array")
  script=$ROSEATE_HOME/slurm/$stage.sh
  [[ $stage != curate || $curate == own ]] || script=$curate
  command+=("$script" "$@")
  if [[ -n $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
    id=${stage^^}
  else
    id=$("${command[@]}") || take_back "$stage"
    id=${id%%;*} # of several clusters sbatch also names the one
    ids+=("$id")
  fi
  rows+=("$stage" "$id" "${previous:--}")
  previous=$id
done
[[ -n $dry_run ]] || printf '%-9s %-9s %s\n' "${rows[@]}"
