;; A trap while planning.
;; plan: `plan` | indirect call type mismatch
(type $other (func (result i32)))
(table 1 funcref)
(elem (i32.const 0) func $describe_zoo)
(func $plan (param i32 i32) (result i32) (call_indirect (type $other) (i32.const 0)))
