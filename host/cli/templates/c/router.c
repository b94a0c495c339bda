/* The best module for every token: the one whose prototype the token's hidden state resembles most. */
#include "polyskill.h"

#define TEXT(text) (text), (uint32_t)(sizeof(text) - 1)
#define PROTOTYPES "prototypes"
static const char PROGRAM[] =
    "[[program]]\nops = [\"load-input\", { linear = \"" PROTOTYPES "\" }, \"abs\", { route = {} }]\n";
static float row[1 << 16];

int32_t polyskill_v1_init(const polyskill_host *host) {
    polyskill_describe(host, TEXT("@NAME@"), TEXT("0.1.0"), 1);
    return POLYSKILL_OK;
}

/* A module's prototype: at every site the input direction that it amplifies most. */
static int32_t define(const polyskill_host *host, uint32_t module) {
    polyskill_module_site_info at = {.size = sizeof at};
    for (uint32_t n = 0; polyskill_module_site(host, module, n, &at) == 0; n++) {
        int64_t width = polyskill_singular_vector(host, module, at.site, 0, 0, row, sizeof row / sizeof *row);
        if (width < 0 || polyskill_define(host, TEXT(PROTOTYPES), module, at.site, row, (uint32_t)width) != 0) {
            polyskill_error(host, NULL, 0, TEXT("a module has no prototype"));
            return POLYSKILL_NOT_READY;
        }
    }
    return POLYSKILL_OK;
}

int32_t polyskill_v1_plan(const polyskill_host *host, const polyskill_request *request) {
    for (uint32_t i = 0; i < request->num_candidates; i++) {
        uint32_t module = request->candidates[i];
        int32_t code = polyskill_defined(host, TEXT(PROTOTYPES), module) ? POLYSKILL_OK : define(host, module);
        if (code != POLYSKILL_OK)
            return code;
    }
    polyskill_answer_programs(host, TEXT(PROGRAM));
    return POLYSKILL_OK;
}

/* Once per step and site, for the rows of all running requests. */
int32_t polyskill_v1_route(const polyskill_host *host, const polyskill_batch *batch, polyskill_decision *decision) {
    (void)host;
    for (uint32_t r = 0; r < batch->num_rows; r++) {
        const float *scores = batch->scores + (size_t)r * batch->num_columns;
        uint32_t best = 0;
        for (uint32_t c = 1; c < batch->num_columns; c++)
            if (scores[c] > scores[best])
                best = c;
        decision->columns[r] = best;
        decision->weights[r] = 1.0f;
        decision->offsets[r + 1] = r + 1;
    }
    return POLYSKILL_OK;
}
