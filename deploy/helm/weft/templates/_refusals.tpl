{{/* What the schema cannot say: values that contradict each other. */}}

{{- define "weft.refusals" -}}
{{- $needed := add 35 (int64 .Values.shutdown.preStopSeconds) }}
{{- if lt (int64 .Values.shutdown.terminationGracePeriodSeconds) (int64 $needed) }}
{{- fail (printf "shutdown.terminationGracePeriodSeconds is %d, but preStopSeconds and the 35 seconds in which the server ends its requests need %d" (int64 .Values.shutdown.terminationGracePeriodSeconds) $needed) }}
{{- end }}
{{- if not (or (eq .Values.model.path .Values.model.mountPath) (hasPrefix (printf "%s/" (trimSuffix "/" .Values.model.mountPath)) .Values.model.path)) }}
{{- fail (printf "model.path is %s, which is not below model.mountPath, %s" .Values.model.path .Values.model.mountPath) }}
{{- end }}
{{- if lt (int64 .Values.autoscaling.maxReplicas) (int64 .Values.autoscaling.minReplicas) }}
{{- fail "autoscaling.maxReplicas is less than autoscaling.minReplicas" }}
{{- end }}
{{- $remote := (include "weft.pulled" . | fromJson).uris }}
{{- range concat .Values.adapters.resolvers .Values.adapters.sourceAllow }}
{{- if contains "://" . }}{{- $remote = append $remote . }}{{- end }}
{{- end }}
{{- $policy := .Values.networkPolicy }}
{{- if and $remote $policy.enabled (not $policy.allowHttps) (not $policy.extraEgress) }}
{{- fail (printf "adapters come from %s, which networkPolicy lets no pod reach: set networkPolicy.allowHttps or networkPolicy.extraEgress" (first $remote)) }}
{{- end }}
{{- end }}
