;; Bulk operations cost little fuel; the deadline counts them.
;; limits: plan_fuel = 9000000000000000000, plan_milliseconds = 30
;; plan: `plan` | interrupt
(func $plan (param i32 i32) (result i32)
    (drop (memory.grow (i32.const 200)))
    (loop $l (memory.fill (i32.const 65536) (i32.const 7) (i32.const 13000000)) (br $l)) unreachable)
