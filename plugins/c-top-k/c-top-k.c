/*
 * Arrow in C, on the flat ABI: the host scores rows with the modules' top right singular vectors, and
 * `route` keeps the k best of each row and gives them a softmax.
 *
 * It needs no libc, so the same file makes a WebAssembly module and a dynamic library, and both give the
 * same bits: every sum has one order, and the exponential function is its own.
 */
#include "polyskill.h"

#define ROWS "svd"
#define MAX_INPUTS 65536u
#define MAX_COLUMNS 4096u
#define DEFAULT_TOP_K 3u
#define MAX_TOP_K 1000000u

#define TEXT(literal) literal, (uint32_t)(sizeof(literal) - 1)

static int32_t fail(const polyskill_host *host, const char *message, uint32_t length)
{
    polyskill_error(host, "", 0, message, length);
    return POLYSKILL_FAILED;
}

static int32_t bad_parameter(const polyskill_host *host, const char *name, uint32_t name_length,
                             const char *message, uint32_t length)
{
    polyskill_error(host, name, name_length, message, length);
    return POLYSKILL_INVALID_PARAMETER;
}

/* Reads the one parameter there is, and refuses all others. */
static int32_t read_top_k(const polyskill_host *host, uint32_t *top_k)
{
    static const char known[] = "top_k";
    char name[64];
    double value = DEFAULT_TOP_K;
    uint32_t at;
    int64_t length;

    for (at = 0; (length = polyskill_parameter_name(host, at, name, sizeof name)) >= 0; at++) {
        uint32_t i = 0;
        if (length > (int64_t)sizeof name)
            return bad_parameter(host, TEXT("(long)"), TEXT("unknown; known are: top_k"));
        while (i < (uint32_t)length && i < sizeof known - 1 && name[i] == known[i])
            i++;
        if ((uint32_t)length != sizeof known - 1 || i != sizeof known - 1)
            return bad_parameter(host, name, (uint32_t)length, TEXT("unknown; known are: top_k"));
    }
    if (polyskill_parameter_number(host, TEXT("top_k"), &value) < 0 || !(value >= 1) ||
        value > MAX_TOP_K || value != (double)(uint32_t)value)
        return bad_parameter(host, TEXT("top_k"), TEXT("expected a whole number from 1 to 1000000"));
    *top_k = (uint32_t)value;
    return POLYSKILL_OK;
}

int32_t polyskill_v1_init(const polyskill_host *host)
{
    uint32_t top_k;
    polyskill_describe(host, TEXT("c-top-k"), TEXT("0.1.0"), 1);
    return read_top_k(host, &top_k);
}

static int32_t define(const polyskill_host *host, uint32_t module)
{
    static float row[MAX_INPUTS];
    polyskill_module_site_info info;
    uint32_t at;

    info.size = sizeof info;
    for (at = 0; polyskill_module_site(host, module, at, &info) == 0; at++) {
        int64_t length = polyskill_singular_vector(host, module, info.site, 0, 0, row, MAX_INPUTS);
        if (length < 0 || length > (int64_t)MAX_INPUTS)
            return fail(host, TEXT("a site has no singular vector of a length that fits"));
        if (polyskill_define(host, TEXT(ROWS), module, info.site, row, (uint32_t)length) != 0)
            return fail(host, TEXT("the host refused a row; its log says why"));
    }
    return POLYSKILL_OK;
}

int32_t polyskill_v1_plan(const polyskill_host *host, const polyskill_request *request)
{
    static const char head[] = "[[program]]\nops = [\"load-input\", { linear = \"" ROWS "\" }, \"abs\", "
                               "{ route = { arguments = [";
    static const char tail[] = "] } }]\n";
    char text[sizeof head + 16 + sizeof tail], digits[16];
    uint32_t top_k = 0, length = 0, count = 0, i;
    int32_t outcome = read_top_k(host, &top_k);

    for (i = 0; i < request->num_candidates && outcome == POLYSKILL_OK; i++)
        if (!polyskill_defined(host, TEXT(ROWS), request->candidates[i]))
            outcome = define(host, request->candidates[i]);
    if (outcome != POLYSKILL_OK)
        return outcome;
    for (i = 0; head[i]; i++)
        text[length++] = head[i];
    do
        digits[count++] = (char)('0' + top_k % 10);
    while (top_k /= 10);
    while (count)
        text[length++] = digits[--count];
    for (i = 0; tail[i]; i++)
        text[length++] = tail[i];
    polyskill_answer_programs(host, text, length);
    return POLYSKILL_OK;
}

/* e^x for x <= 0, from 2^n * e^r with |r| <= ln(2) / 2; in double, so that the float is right but for its
 * last bit at most. */
static float exponential(float value)
{
    static const double inverse[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                                     1.0 / 120,     1.0 / 24,     1.0 / 6,     1.0 / 2,    1.0,
                                     1.0};
    union {
        uint64_t bits;
        double value;
    } power;
    double x = (double)value, r, sum = 0;
    int32_t n;
    uint32_t i;

    if (x != x)
        return value;
    if (x < -104)
        return 0;
    n = (int32_t)(x * 1.4426950408889634 - 0.5);
    r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    for (i = 0; i < sizeof inverse / sizeof *inverse; i++)
        sum = sum * r + inverse[i];
    power.bits = (uint64_t)(1023 + n) << 52;
    return (float)(sum * power.value);
}

/* Marks the k largest, and what is not a number before them; of equal ones, the lower column. */
static void mark_best(const float *scores, uint32_t num_columns, uint32_t k, uint8_t *marked)
{
    uint32_t column, best;
    for (column = 0; column < num_columns; column++)
        marked[column] = k >= num_columns;
    for (; k > 0 && k < num_columns; k--) {
        best = num_columns;
        for (column = 0; column < num_columns; column++)
            if (!marked[column] && (best == num_columns || scores[column] > scores[best] ||
                                    scores[column] != scores[column]))
                best = column;
        marked[best] = 1;
    }
}

int32_t polyskill_v1_route(const polyskill_host *host, const polyskill_batch *batch,
                           polyskill_decision *decision)
{
    static uint8_t marked[MAX_COLUMNS];
    uint32_t num_columns = batch->num_columns, row, column, count = 0, k;

    if (batch->num_arguments != 1 || num_columns > MAX_COLUMNS)
        return fail(host, TEXT("expected one argument and at most 4096 columns"));
    k = (uint32_t)batch->arguments[0];
    for (row = 0; row < batch->num_rows; row++) {
        const float *scores = batch->scores + (size_t)row * num_columns;
        uint32_t first = count;
        float largest = 0, sum = 0;

        if ((uint64_t)count + (k < num_columns ? k : num_columns) > decision->capacity)
            return fail(host, TEXT("more picks than fit"));
        mark_best(scores, num_columns, k, marked);
        /* Scores are absolute, so that none is below 0. */
        for (column = 0; column < num_columns; column++)
            if (marked[column] && !(scores[column] <= largest))
                largest = scores[column];
        for (column = 0; column < num_columns; column++) {
            if (!marked[column])
                continue;
            decision->columns[count] = column;
            decision->weights[count] = exponential(scores[column] - largest);
            sum += decision->weights[count++];
        }
        for (; first < count; first++)
            decision->weights[first] /= sum;
        decision->offsets[row + 1] = count;
    }
    return POLYSKILL_OK;
}
