/* exp against the C library's in double: the error that csrc/fast/vector_math.h states, and the values at the ends.
 * With an argument, as test_vector_math 1, over every float; otherwise over every 1009th. */
#include "check.h"

#include "fast/vector_math.h"

static float exp_of(float x) {
    float result[LANES];
    store(result, vector_exp(broadcast(x)));
    return result[0];
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The distance between neighbouring floats at y. */
static double ulp(double y) {
    int exponent;
    frexp(y, &exponent);
    return ldexp(1.0, (exponent > -125 ? exponent : -125) - 24);
}

static double error_in_ulp(float x) {
    double expected = exp((double)x), found = exp_of(x);
    if (expected > 3.4028235677973366e38) return found == INFINITY ? 0.0 : INFINITY;   // rounds to infinity
    return fabs(found - expected) / ulp(expected);
}

int main(int arguments, char **argument) {
    uint32_t step = arguments > 1 ? (uint32_t)strtoul(argument[1], NULL, 10) : 1009;
    double largest = 0.0;
    if (!is_supported() || step == 0) return SKIPPED;
    #pragma omp parallel for reduction(max : largest)
    for (int64_t bits = 0; bits <= 0xFFFFFFFF; bits += step) {
        float x = float_of((uint32_t)bits);
        double error = x != x ? 0.0 : error_in_ulp(x);
        largest = error > largest ? error : largest;
    }
    printf("exp: at most %.3f ulp\n", largest);
    CHECK(largest <= 1.1);
    CHECK(exp_of(0.0f) == 1.0f);
    CHECK(exp_of(-INFINITY) == 0.0f);
    CHECK(exp_of(INFINITY) == INFINITY);
    CHECK(isnan(exp_of(NAN)));
    return failures != 0;
}
