/work/tools/t.sh new tests/subject tests/measures/test_verify.py tests/data/test_token_types.py tests/measures/attention tests/reducers/test_context.py -x 2>&1 | tail -15
