;; A memory with 64-bit addresses, in an ABI of 32 bits: what is below 4 GiB can be said.
;; serves
(module
    (import "polyskill_v1" "describe" (func $describe (param i32 i32 i32 i32 i32 i32)))
    (import "polyskill_v1" "answer_fixed" (func $answer_fixed (param i32 i32 i32 i32)))
    (memory (export "memory") i64 2)
    (data (i64.const 1024) "zoo1\01\00\00\00\00\00\00\3f")
    (func (export "polyskill_v1_init") (param i32) (result i32)
        (call $describe (i32.const 0) (i32.const 1024) (i32.const 3) (i32.const 1027) (i32.const 1) (i32.const 1))
        (i32.const 0))
    (func (export "polyskill_v1_plan") (param i32 i32) (result i32)
        (call $answer_fixed (i32.const 0) (i32.const 1028) (i32.const 1) (i32.const 0)) (i32.const 0)))
