/* Constants that divide work: the rows of a block, the numbers of a partial sum, how much is too little for several threads.
 *
 * Real runs are far above each of them, and small tests below. So a build with PYGPT_TINY_BLOCKS makes them tiny: there a test
 * of a few rows has a second block, a last one that is not whole, and partial sums of partial sums.
 */
#ifndef PYGPT_DIVIDES_WORK_H
#define PYGPT_DIVIDES_WORK_H

#if defined(PYGPT_TINY_BLOCKS)
    #define DIVIDES_WORK(usual, tiny) (tiny)
#else
    #define DIVIDES_WORK(usual, tiny) (usual)
#endif

#endif
