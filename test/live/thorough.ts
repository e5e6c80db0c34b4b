/**
 * Emulated guests are slow, and the suite has a limit of 25 minutes on two cores. What others of its tests show in another
 * combination runs only with UMBRA_TEST_THOROUGH=1: see CONTRIBUTING.md.
 */
export const thorough = process.env.UMBRA_TEST_THOROUGH === '1'

/** All of them, or those that always run. */
export const usually = <T>(always: readonly T[], thoroughly: readonly T[]): readonly T[] =>
  thorough ? [...always, ...thoroughly] : always

/** Options of a test that only runs then. */
export const rarely = { skip: !thorough && 'runs with UMBRA_TEST_THOROUGH=1' }
