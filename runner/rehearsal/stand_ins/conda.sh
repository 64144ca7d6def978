# What a shell reads to know conda: @ROOT@/etc/profile.d/conda.sh. @ROOT@ is put in when it is installed.
export CONDA_EXE='@ROOT@/bin/conda'
conda() {
    case "${1:-}" in
    activate) shift; _rehearsal_activate "${1:-base}" ;;
    deactivate) _rehearsal_activate base ;;
    *) "$CONDA_EXE" "$@" ;;
    esac
}
_rehearsal_activate() {
    case "$1" in
    base) _rehearsal_env='@ROOT@' ;;
    */*) _rehearsal_env=$1 ;;
    *) _rehearsal_env='@ROOT@/envs'/$1 ;;
    esac
    if [ ! -x "$_rehearsal_env/bin/python" ]; then
        echo "EnvironmentNameNotFound: Could not find conda environment: $1" >&2
        return 1
    fi
    _rehearsal_path=:$PATH:
    if [ -n "${CONDA_PREFIX:-}" ]; then
        case "$_rehearsal_path" in
        *":$CONDA_PREFIX/bin:"*)
            _rehearsal_path=${_rehearsal_path%%":$CONDA_PREFIX/bin:"*}:${_rehearsal_path#*":$CONDA_PREFIX/bin:"} ;;
        esac
    fi
    _rehearsal_path=${_rehearsal_path#:}
    export PATH="$_rehearsal_env/bin:${_rehearsal_path%:}"
    export CONDA_PREFIX="$_rehearsal_env" CONDA_DEFAULT_ENV="$1" CONDA_SHLVL=1
    unset _rehearsal_env _rehearsal_path
}
case ":$PATH:" in
*:'@ROOT@/condabin':*) ;;
*) export PATH='@ROOT@/condabin':"$PATH" ;;
esac
