#!/bin/sh
# Every test, in two parts: what does not mind company, on two workers, a file at a time; then what is marked `alone`,
# one after the other. The second part runs where tests of the first failed, too. Exit 1 where any failed: pytest's
# --last-failed then knows those of both.
set -u
cd "$(dirname "$0")/.."
failed=0

run() {
    .venv/bin/python -m pytest "$@"
    status=$?
    case $status in
    0) ;;
    1) failed=1 ;;
    2) exit 2 ;; # interrupted, or a file that can't be read
    *)
        # Not every test ran: those that failed so far shall not be taken for all that are to run again.
        rm -f .pytest_cache/v/cache/lastfailed
        exit $status
        ;;
    esac
}

# Files in the order of their names: what waits for processes comes first; what is short comes last and fills the gaps.
run -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder
run -m alone
[ $failed = 0 ] || echo "Some tests failed; each part's summary names its own." >&2
exit $failed
